;; Logs three hundred lines of 5 KiB, of which each is cut and the last are left out
(func (export "refresh") (type $refresh) (local $i i32)
    (memory.fill (i32.const 65536) (i32.const 97) (i32.const 5120))
    (loop $again
        (call $log (i32.const 0) (i32.const 65536) (i32.const 5120))
        (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 300))))
    (i32.const 4160))
