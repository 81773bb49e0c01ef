;; Takes too much memory in two halves, each of which it might have
(memory (export "memory") 600)
(memory $other 600)
