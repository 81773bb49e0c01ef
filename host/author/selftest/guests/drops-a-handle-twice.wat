;; Gives a handle back twice
(func (export "refresh") (type $refresh) (local $it i32)
    (local.set $it (call $first))
    (call $drop-container (local.get $it))
    (call $drop-container (local.get $it))
    (i32.const 4160))
