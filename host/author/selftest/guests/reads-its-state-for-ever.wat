;; Reads a value of its state, again and again
(func (export "refresh") (type $refresh)
    (loop $again (call $state-get (i32.const 1024) (i32.const 4) (i32.const 8192)) (br $again))
    unreachable)
