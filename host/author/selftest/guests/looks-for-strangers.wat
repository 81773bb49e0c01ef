;; Lists the containers and looks for one whose name does not begin with `ws-`
(func (export "refresh") (type $refresh) (local $i i32)
    (drop (call $first))
    (loop $next
        (call $name (i32.load (i32.add (i32.load (i32.const 8196)) (i32.shl (local.get $i) (i32.const 2)))) (i32.const 8300))
        (call $must (i32.eq (i32.const 0x2d7377) (i32.and (i32.const 0xffffff) (i32.load (i32.load (i32.const 8300))))))
        (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.load (i32.const 8200)))))
    (i32.const 4160))
