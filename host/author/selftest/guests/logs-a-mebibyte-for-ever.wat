;; Logs a line of 1 MiB, again and again
(memory (export "memory") 20)
(func (export "refresh") (type $refresh)
    (loop $again
        (call $log (i32.const 0) (i32.const 65536) (i32.const 1048576))
        (br $again))
    unreachable)
