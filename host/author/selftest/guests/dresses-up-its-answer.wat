;; Puts colours, a new line and text that runs backwards into a reason
(data (i32.const 1060) "ws-00")
(data (i32.const 10000) "\1b[31mred\0a{\"level\":\"error\"}\e2\80\aebackwards\0d")
(func (export "refresh") (type $refresh)
    (drop (call $first))
    (call $decide (i32.const 8300) (i32.const 1060) (i32.const 5))
    (i32.store (i32.const 8320) (i32.const 10000))
    (i32.store (i32.const 8324) (i32.const 39))
    (call $report (i32.const 8300) (i32.const 1)))
