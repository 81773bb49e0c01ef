;; Recreates a container by a number that nobody gave it, beside one that it has
(func (export "refresh") (type $refresh) (local $image i32)
    (local.set $image (call $image))
    (call $entry (i32.const 10000) (call $first) (local.get $image) (i32.const 0))
    (call $entry (i32.const 10012) (i32.const 12345) (local.get $image) (i32.const 0))
    (call $recreate (i32.const 10000) (i32.const 2) (i32.const 8400))
    (i32.const 4160))
