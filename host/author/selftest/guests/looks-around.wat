;; Asks WASI for arguments, variables and input; there is none
(func (export "refresh") (type $refresh)
    (call $arguments (i32.const 8300))
    (call $must (i32.eqz (i32.load (i32.const 8304))))
    (call $environment (i32.const 8308))
    (call $must (i32.eqz (i32.load (i32.const 8312))))
    (call $read (call $stdin) (i64.const 100) (i32.const 8320))
    ;; The second case of an error is `closed`.
    (call $must (i32.load8_u (i32.const 8320)))
    (call $must (i32.load8_u (i32.const 8324)))
    (i32.const 4160))
