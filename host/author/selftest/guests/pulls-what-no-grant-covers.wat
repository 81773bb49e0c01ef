;; Pulls an image of somebody else; it is refused, and goes on
(data (i32.const 1300) "ghcr.io/somebody-else/app:latest")
(func (export "refresh") (type $refresh)
    (i32.store (i32.const 1400) (i32.const 1300))
    (i32.store (i32.const 1404) (i32.const 32))
    (call $pull (i32.const 1400) (i32.const 1) (i32.const 8400))
    (call $must (i32.load8_u (i32.load (i32.const 8400))))
    ;; The first case of an error is `denied`.
    (call $must (i32.eqz (i32.load8_u offset=4 (i32.load (i32.const 8400)))))
    (i32.const 4160))
