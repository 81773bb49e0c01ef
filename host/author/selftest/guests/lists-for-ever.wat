;; Has the containers listed again and again, and gives the handles back; it is refused at some time, and goes on
(func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
(func (export "refresh") (type $refresh) (local $lists i32) (local $i i32)
    (loop $again
        (call $containers (i32.const 8192))
        (if (i32.eqz (i32.load8_u (i32.const 8192))) (then
            (local.set $i (i32.load (i32.const 8200)))
            (loop $next
                (local.set $i (i32.sub (local.get $i) (i32.const 1)))
                (call $drop-container (i32.load (i32.add (i32.const 65536) (i32.shl (local.get $i) (i32.const 2)))))
                (br_if $next (local.get $i)))
            ;; Nobody stopped it.
            (call $must (i32.lt_u (local.tee $lists (i32.add (local.get $lists) (i32.const 1))) (i32.const 2000)))
            (br $again))))
    ;; The third case of an error is `quota-exceeded`.
    (call $must (i32.eq (i32.load8_u (i32.const 8196)) (i32.const 3)))
    (i32.const 4160))
