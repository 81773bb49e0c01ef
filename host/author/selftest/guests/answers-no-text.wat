;; Gives a reason that is no UTF-8
(data (i32.const 1060) "ws-00")
(func (export "refresh") (type $refresh)
    (drop (call $first))
    (i32.store (i32.const 10000) (i32.const -1))
    (call $decide (i32.const 8300) (i32.const 1060) (i32.const 5))
    (i32.store (i32.const 8320) (i32.const 10000))
    (i32.store (i32.const 8324) (i32.const 4))
    (call $report (i32.const 8300) (i32.const 1)))
