;; Computes for ever in single instructions that take long: fills of all its memory
(memory (export "memory") 900)
(func (export "refresh") (type $refresh)
    (loop $again
        (memory.fill (i32.const 65536) (i32.const 1) (i32.const 58000000))
        (br $again))
    unreachable)
