;; Computes for ever in the destructor of a resource of its own
(func (export "refresh") (type $refresh)
    (call $drop-thing (call $new-thing (i32.const 1)))
    (i32.const 4160))
(func $destroy (export "destructor") (param i32) (loop $for-ever (br $for-ever)))
