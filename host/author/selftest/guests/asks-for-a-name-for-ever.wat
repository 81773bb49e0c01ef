;; Asks for the name of a container, again and again
(func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
(func (export "refresh") (type $refresh) (local $it i32)
    (local.set $it (call $first))
    (loop $again (call $name (local.get $it) (i32.const 8192)) (br $again))
    unreachable)
