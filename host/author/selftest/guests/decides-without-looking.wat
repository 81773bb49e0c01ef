;; Decides about a container without having listed any
(data (i32.const 1060) "ws-00")
(func (export "refresh") (type $refresh)
    (call $decide (i32.const 8300) (i32.const 1060) (i32.const 5))
    (call $report (i32.const 8300) (i32.const 1)))
