;; Passes an image where a container belongs, and the other way round
(func (export "refresh") (type $refresh)
    (call $entry (i32.const 10000) (call $image) (call $first) (i32.const 0))
    (call $recreate (i32.const 10000) (i32.const 1) (i32.const 8400))
    (i32.const 4160))
