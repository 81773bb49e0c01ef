;; Computes for ever when it is to make a refresh
(func $decide-for-ever (export "refresh") (type $refresh) (loop $for-ever (br $for-ever)) unreachable)
