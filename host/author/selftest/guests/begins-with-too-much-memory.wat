;; Declares more memory than a policy may have
(memory (export "memory") 1025)
