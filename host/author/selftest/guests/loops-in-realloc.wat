;; Computes for ever when the host asks it where to put a text
(func $allocate (export "realloc") (param i32 i32 i32 i32) (result i32) (loop $for-ever (br $for-ever)) unreachable)
