;; Stores values under a hundred keys; it is refused at some time, and goes on
(func (export "refresh") (type $refresh) (local $i i32)
    (loop $again
        (i32.store8 (i32.const 8300) (i32.add (i32.const 33) (local.get $i)))
        (call $state-set (i32.const 8300) (i32.const 1) (i32.const 1) (i32.const 1024) (i32.const 4) (i32.const 8192))
        (if (i32.eqz (i32.load8_u (i32.const 8192))) (then
            (call $must (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 90)))
            (br $again))))
    (call $must (i32.eqz (i32.load8_u (i32.const 8196))))
    (i32.const 4160))
