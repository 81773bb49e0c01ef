;; Stores a value of more than 16 KiB; it is refused, and goes on
(func (export "refresh") (type $refresh)
    (memory.fill (i32.const 70000) (i32.const 97) (i32.const 16385))
    (call $state-set (i32.const 1024) (i32.const 4) (i32.const 1) (i32.const 70000) (i32.const 16385) (i32.const 8192))
    (call $must (i32.load8_u (i32.const 8192)))
    (i32.const 4160))
