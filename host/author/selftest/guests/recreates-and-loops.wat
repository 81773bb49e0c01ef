;; Recreates a container and computes for ever; the replacement is finished
(func (export "refresh") (type $refresh)
    (call $entry (i32.const 10000) (call $first) (call $image) (i32.const 0))
    (call $recreate (i32.const 10000) (i32.const 1) (i32.const 8400))
    (loop $for-ever (br $for-ever)) unreachable)
