;; Decides twice about one container
(data (i32.const 1060) "ws-00")
(func (export "refresh") (type $refresh)
    (drop (call $first))
    (call $decide (i32.const 8300) (i32.const 1060) (i32.const 5))
    (call $decide (i32.const 8328) (i32.const 1060) (i32.const 5))
    (call $report (i32.const 8300) (i32.const 2)))
