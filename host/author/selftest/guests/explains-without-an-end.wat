;; Gives a reason of 6 KiB for a decision, of which as much is kept as a person may read
(data (i32.const 1060) "ws-00")
(func (export "refresh") (type $refresh)
    (drop (call $first))
    (memory.fill (i32.const 10000) (i32.const 97) (i32.const 6144))
    (call $decide (i32.const 8300) (i32.const 1060) (i32.const 5))
    (i32.store (i32.const 8320) (i32.const 10000))
    (i32.store (i32.const 8324) (i32.const 6144))
    (call $report (i32.const 8300) (i32.const 1)))
