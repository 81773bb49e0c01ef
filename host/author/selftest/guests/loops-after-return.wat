;; Computes for ever in what runs after it has answered
(func $clean-up (export "after-describe") (param i32) (loop $for-ever (br $for-ever)))
