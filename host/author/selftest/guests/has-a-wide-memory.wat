;; Wants a memory of 64-bit addresses
(memory (export "memory") 2)
(memory $wide i64 1)
