;; Makes handles of a resource of its own, and keeps them
(func (export "refresh") (type $refresh)
    (loop $again (drop (call $new-thing (i32.const 1))) (br $again))
    unreachable)
