;; Wants memory that threads could share
(memory (export "memory") 2)
(memory $shared 1 1 shared)
