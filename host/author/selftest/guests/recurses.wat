;; Calls itself without an end
(func $deeper (param i32) (result i32)
    (i32.add (i32.const 1) (call $deeper (i32.add (local.get 0) (i32.const 1)))))
(func (export "refresh") (type $refresh) (call $deeper (i32.const 0)))
