;; Asks for the name of a container whose handle it has given back
(func (export "refresh") (type $refresh) (local $it i32)
    (local.set $it (call $first))
    (call $drop-container (local.get $it))
    (call $name (local.get $it) (i32.const 8192))
    (i32.const 4160))
