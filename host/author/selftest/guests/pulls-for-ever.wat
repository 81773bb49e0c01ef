;; Pulls one image, again and again; it is refused at some time, and goes on
(data (i32.const 1300) "ghcr.io/molecule-ai/workspace-template-hermes:latest")
(func (export "refresh") (type $refresh) (local $times i32)
    (i32.store (i32.const 1400) (i32.const 1300))
    (i32.store (i32.const 1404) (i32.const 52))
    (loop $again
        (call $pull (i32.const 1400) (i32.const 1) (i32.const 8400))
        (if (i32.eqz (i32.load8_u (i32.load (i32.const 8400)))) (then
            (call $must (i32.lt_u (local.tee $times (i32.add (local.get $times) (i32.const 1))) (i32.const 1000)))
            (br $again))))
    (i32.const 4160))
