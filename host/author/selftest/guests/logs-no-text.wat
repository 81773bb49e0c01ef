;; Logs a line that is no UTF-8
(func (export "refresh") (type $refresh)
    (i32.store (i32.const 10000) (i32.const -1))
    (call $log (i32.const 1) (i32.const 10000) (i32.const 4))
    (i32.const 4160))
