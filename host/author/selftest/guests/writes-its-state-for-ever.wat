;; Writes a value of its state, again and again; it is refused at some time, and goes on
(func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
(func (export "refresh") (type $refresh) (local $times i32)
    (loop $again
        (call $state-set (i32.const 1024) (i32.const 4) (i32.const 1) (i32.const 1024) (i32.const 4) (i32.const 8192))
        (if (i32.eqz (i32.load8_u (i32.const 8192))) (then
            (call $must (i32.lt_u (local.tee $times (i32.add (local.get $times) (i32.const 1))) (i32.const 2000)))
            (br $again))))
    ;; The first case of an error is `too-large`.
    (call $must (i32.eqz (i32.load8_u (i32.const 8196))))
    (i32.const 4160))
