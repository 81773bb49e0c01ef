;; Recreates three containers in one wave; the host makes as many as it may, and refuses the other
(func (export "refresh") (type $refresh) (local $i i32) (local $image i32)
    (drop (call $first))
    (local.set $image (call $image))
    (loop $next
        (call $entry (i32.add (i32.const 10000) (i32.mul (local.get $i) (i32.const 12)))
            (i32.load (i32.add (i32.load (i32.const 8196)) (i32.shl (local.get $i) (i32.const 2))))
            (local.get $image) (i32.const 0))
        (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 3))))
    (call $recreate (i32.const 10000) (i32.const 3) (i32.const 8400))
    (i32.const 4160))
