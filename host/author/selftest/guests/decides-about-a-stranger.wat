;; Decides about a container that there is, and that it was not lent
(data (i32.const 1060) "database")
(func (export "refresh") (type $refresh)
    (drop (call $first))
    (call $decide (i32.const 8300) (i32.const 1060) (i32.const 8))
    (call $report (i32.const 8300) (i32.const 1)))
