;; Says that its name has 65 letters
(memory (export "memory") 2)
(func (export "describe") (type $describe)
    (memory.fill (i32.const 8300) (i32.const 97) (i32.const 65))
    (i32.store (i32.const 2048) (i32.const 8300))
    (i32.store (i32.const 2052) (i32.const 65))
    (i32.store (i32.const 2056) (i32.const 8300))
    (i32.store (i32.const 2060) (i32.const 1))
    (i32.const 2048))
