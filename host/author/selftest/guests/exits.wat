;; Ends itself, as if it were a program
(func (export "refresh") (type $refresh)
    (call $exit (i32.const 1))
    (i32.const 4160))
