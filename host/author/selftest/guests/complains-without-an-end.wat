;; Fails with ten thousand unknown targets
(memory (export "memory") 40)
(func (export "refresh") (type $refresh)
    ;; The second case of the result, the first case of a failure.
    (i32.store8 (i32.const 8300) (i32.const 1))
    (i32.store (i32.const 8308) (i32.const 1048576))
    (i32.store (i32.const 8312) (i32.const 10000))
    (i32.const 8300))
