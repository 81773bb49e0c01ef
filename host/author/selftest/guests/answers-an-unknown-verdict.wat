;; Gives a verdict that there is not
(data (i32.const 1060) "ws-00")
(func (export "refresh") (type $refresh)
    (drop (call $first))
    (call $decide (i32.const 8300) (i32.const 1060) (i32.const 5))
    (i32.store8 (i32.const 8308) (i32.const 99))
    (call $report (i32.const 8300) (i32.const 1)))
