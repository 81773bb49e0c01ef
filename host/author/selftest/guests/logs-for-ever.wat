;; Logs ten thousand lines
(func (export "refresh") (type $refresh) (local $i i32)
    (loop $again
        (call $log (i32.const 0) (i32.const 1024) (i32.const 7))
        (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 10000))))
    (i32.const 4160))
