;; Inspects every container and looks through all that it was told for a secret of their environment
(memory (export "memory") 16)
(func (export "refresh") (type $refresh) (local $at i32)
    (drop (call $first))
    (call $inspect (i32.load (i32.const 8196)) (i32.load (i32.const 8200)) (i32.const 8400))
    (local.set $at (i32.const 65536))
    (loop $next
        ;; "cana", with which the secret begins.
        (call $must (i32.ne (i32.load (local.get $at)) (i32.const 0x616e6163)))
        (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (i32.const 1048000))))
    (i32.const 4160))
