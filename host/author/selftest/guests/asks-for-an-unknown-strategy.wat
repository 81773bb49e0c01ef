;; Recreates a container by a strategy that there is not
(func (export "refresh") (type $refresh)
    (call $entry (i32.const 10000) (call $first) (call $image) (i32.const 77))
    (call $recreate (i32.const 10000) (i32.const 1) (i32.const 8400))
    (i32.const 4160))
