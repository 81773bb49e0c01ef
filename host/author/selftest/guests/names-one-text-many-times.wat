;; Pulls twenty thousand images that are all one text of 1 MiB, which would be 20 GiB to the host
(memory (export "memory") 40)
(func (export "refresh") (type $refresh) (local $i i32)
    (memory.fill (i32.const 1048576) (i32.const 97) (i32.const 1048576))
    (loop $next
        (i32.store (i32.add (i32.const 65536) (i32.shl (local.get $i) (i32.const 3))) (i32.const 1048576))
        (i32.store offset=4 (i32.add (i32.const 65536) (i32.shl (local.get $i) (i32.const 3))) (i32.const 1048576))
        (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 20000))))
    (call $pull (i32.const 65536) (i32.const 20000) (i32.const 8192))
    (i32.const 4160))
