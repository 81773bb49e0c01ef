;; Calls the host while the host asks it where to put a text
(func $allocate (export "realloc") (param i32 i32 i32 i32) (result i32)
    (drop (call $now))
    (i32.const 65536))
