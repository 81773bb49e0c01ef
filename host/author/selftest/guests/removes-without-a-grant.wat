;; Recreates a container by `remove`, which no grant lists; it is refused, and goes on
(func (export "refresh") (type $refresh)
    (call $entry (i32.const 10000) (call $first) (call $image) (i32.const 1))
    (call $recreate (i32.const 10000) (i32.const 1) (i32.const 8400))
    (call $must (i32.load8_u (i32.load (i32.const 8400))))
    (i32.const 4160))
