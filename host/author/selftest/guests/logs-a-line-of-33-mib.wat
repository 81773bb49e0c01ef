;; Logs one line of 33 MiB
(memory (export "memory") 600)
(func (export "refresh") (type $refresh)
    (call $log (i32.const 1) (i32.const 65536) (i32.const 34603008))
    (i32.const 4160))
