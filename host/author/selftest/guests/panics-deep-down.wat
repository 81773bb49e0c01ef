;; Panics a thousand calls deep, for a backtrace without an end
(func $one (param i32) (result i32)
    (if (i32.eqz (local.get 0)) (then unreachable))
    (i32.add (i32.const 1) (call $two (i32.sub (local.get 0) (i32.const 1)))))
(func $two (param i32) (result i32) (i32.add (i32.const 1) (call $three (local.get 0))))
(func $three (param i32) (result i32) (i32.add (i32.const 1) (call $one (local.get 0))))
(func (export "refresh") (type $refresh) (call $one (i32.const 1000)))
