# SPDX-License-Identifier: BSL-1.0
# The tests of the program ask; those of its parts, and of the client, are in tests/openai.

sluice_example_test(NAME "ask prints its usage" COMMAND ask -h PASS "^usage: ask .*-h, --help")
set(says "ask: ")
sluice_refusal_test(ask "rejects an unknown option" "--ask" "${says}unknown option '--ask' [(]see --help[)]")
sluice_refusal_test(ask "rejects two questions" "why not" "${says}there is more than one question: 'why' and 'not'. put it in quotes")
sluice_refusal_test(ask "rejects an empty question" "''" "${says}the question is empty")
sluice_refusal_test(ask "rejects an empty standard input" "</dev/null" "${says}the question is empty")
sluice_refusal_test(ask "rejects endless standard input" "</dev/zero" "${says}the question is longer than 16 MiB")
foreach(input "</" "<&-")
    sluice_refusal_test(ask "cannot read ${input}" "${input}" "${says}cannot read standard input")
endforeach()
sluice_refusal_test(ask "rejects a question beside a batch" "why --batch prompts"
                    "${says}there are --batch and a question, 'why'. one is possible")
sluice_refusal_test(ask "rejects what needs a batch" "why --resume" "${says}--resume needs --batch")
sluice_refusal_test(ask "rejects a resumption of nothing" "--batch prompts --resume" "${says}--resume needs --output")
sluice_refusal_test(ask "rejects a number out of range" "--batch prompts --rate 0"
                    "${says}--rate takes a whole number from 1 to 1000000, got '0'")
sluice_refusal_test(ask "rejects one file for answers and failures" "--batch prompts --output both --failed ./both"
                    "${says}--output and --failed cannot both go to './both'")
sluice_refusal_test(ask "cannot read" "--batch /no/where" "${says}cannot read '/no/where'")
foreach(url ftp://127.0.0.1 127.0.0.1 http:// "http://127.0.0.1:99999/v1")
    sluice_refusal_test(ask "rejects ${url} as a URL" "why --model '${url}'" "ask: [^\n]*'${url}'[^\n]*")
endforeach()

sluice_script_test(ask "answers a question" [=[
    "$program" 'What is a sluice?' >answer 2>messages
    cat answer messages
    test "$(wc -l <answer)" = 1
    grep -F 'What is a sluice?' answer
    grep -x 'ask: no --model, so a scripted server on http://127.0.0.1:[0-9]*/v1 answers' messages
    test "$(wc -l <messages)" = 1
    printf 'What is a sluice?\n\n' | "$program" 2>/dev/null | cmp - answer
    printf 'What is a sluice?' | "$program" - 2>/dev/null | cmp - answer
]=])
sluice_script_test(ask "fails for a question that is refused" [=[
    status=0
    "$program" 'please refuse' >answer 2>messages || status=$?
    cat messages
    test $status = 1
    test ! -s answer
    test "$(wc -l <messages)" = 2
    grep '^ask: .*the prompt is refused' messages
]=])
# The first piece is read long before the last would have come: that takes 20 ms for each word.
sluice_script_test(ask "streams an answer, until it is interrupted" [=[
    mkfifo out
    yes word | head -n 10000 | "$program" >out 2>messages &
    exec 3<out
    first=$(dd bs=1 count=1 <&3)
    kill -INT $!
    cat <&3 >rest
    status=0
    wait $! || status=$?
    cat rest messages
    test $status = 130
    test -n "$first"
    test "$(tail -c 1 rest | wc -l)" = 1
    test "$(wc -w <rest)" -lt 9000
    test "$(wc -l <messages)" = 1
]=])
sluice_script_test(ask "is interrupted while it waits for an answer" [=[
    mkfifo messages
    "$program" 'a slow one' >answer 2>messages &
    exec 3<messages
    read -r line <&3
    sleep 0.1
    kill -TERM $!
    status=0
    wait $! || status=$?
    test $status = 143
    test ! -s answer
    test -z "$(cat <&3)"
]=])

sluice_script_test(ask "answers a batch in order" [=[
    for i in $(seq 60); do echo "{\"id\":\"q-$i\",\"prompt\":\"prompt $i, $i\"}"; done >prompts
    "$program" --batch prompts --at-once 20 >answers 2>messages
    head -n 3 answers
    cat messages
    for i in $(seq 60); do echo "q-$i $i"; done >expected
    sed 's/^{"id":"\([^"]*\)","answer":".*prompt \([0-9]*\), \2.*","finish_reason":"stop","attempts":1,.*}$/\1 \2/' answers | cmp - expected
    test "$(tail -n 1 messages)" = 'ask: 60 answered, 0 failed, 0 not done'
    "$program" --batch prompts --output /dev/stdout --failed failed --at-once 60 2>/dev/null | cmp - answers
    "$program" --batch prompts --output here --at-once 1000 --rate 1000000 2>messages
    cmp here answers
    test ! -s here.failed.jsonl
]=])
sluice_script_test(ask "answers more prompts than may be ahead of the first" [=[
    seq 2500 >ids
    sed 's/.*/"&"/' ids >prompts
    "$program" --batch prompts --at-once 200 | sed 's/","answer.*//; s/.*"//' | cmp - ids
]=])
# At one call a minute, the second cannot have begun when the first has ended.
sluice_script_test(ask "keeps to a rate" [=[
    seq 9 | sed 's/.*/"&"/' >prompts
    mkfifo out
    "$program" --batch prompts --rate 1 --grace 0 >out 2>messages &
    exec 3<out
    read -r first <&3
    kill -INT $!
    wait $! || test $? = 1
    test -z "$(cat <&3)"
    test "$(tail -n 1 messages)" = 'ask: 1 answered, 0 failed, 8 not done'
]=])
sluice_script_test(ask "puts what failed beside the answers" [=[
    printf '"one"\n{"id":"no","prompt":"please refuse"}\n"three"\n"please fail"\n' >prompts
    status=0
    "$program" --batch prompts --output out.jsonl --retries 1 2>messages || status=$?
    cat out.jsonl out.failed.jsonl messages
    test $status = 1
    test "$(tail -n 1 messages)" = 'ask: 2 answered, 2 failed, 0 not done'
    test "$(sed 's/","answer.*//' out.jsonl)" = '{"id":"1
{"id":"3'
    grep '^{"id":"no","prompt":"please refuse","stage":"answer","reason":"model","error":".*the prompt is refused.*","status":400,"attempts":1}$' out.failed.jsonl
    grep '^{"id":"4","prompt":"please fail","stage":"answer","reason":"model","error":".*the server failed.*","status":500,"attempts":2}$' out.failed.jsonl
    test "$(wc -l <out.failed.jsonl)" = 2

    status=0
    "$program" --batch prompts --retries 0 --timeout 1 >out 2>messages || status=$?
    test $status = 1
    test "$(grep -c '^{' messages)" = 2

    # What failed is a file of prompts, too.
    sed -i 's/please refuse/please answer/; s/please fail/please answer/' out.failed.jsonl
    "$program" --batch out.failed.jsonl --output again.jsonl
    test "$(sed 's/","answer.*//' again.jsonl)" = '{"id":"no
{"id":"4'
]=])
sluice_script_test(ask "gives up calls that take too long" [=[
    echo '"a slow one"' >prompts
    status=0
    "$program" --batch prompts --retries 1 --timeout 1 2>messages || status=$?
    cat messages
    test $status = 1
    grep '"reason":"timeout","error":"timed out after 1000 ms","status":null,"attempts":2}$' messages
]=])
sluice_script_test(ask "resumes a file that was cut off" [=[
    seq 30 | sed 's/.*/"prompt &"/' >prompts
    "$program" --batch prompts --output all --at-once 30
    size=$(wc -c <all)
    for kept in 0 1 $((size / 3)) $((size / 2)) $((size - 1)) $size; do
        head -c $kept all >out
        answered=$(wc -l <out)
        "$program" --batch prompts --output out --at-once 30 --resume 2>messages
        cat messages
        tail -n 1 messages | grep -x "ask: $((30 - answered)) answered, 0 failed, 0 not done, $answered answered before"
        cmp out all
    done
]=])
sluice_script_test(ask "runs what failed again, and puts it in order" [=[
    printf '"one"\n"please refuse"\n"three"\n"please refuse as well"\n"five"\n' >prompts
    status=0
    "$program" --batch prompts --output out || status=$?
    test $status = 1
    test "$(wc -l <out.failed.jsonl)" = 2
    sed -i 's/refuse"/answer"/' prompts
    status=0
    "$program" --batch prompts --output out --resume 2>messages || status=$?
    test $status = 1
    test "$(tail -n 1 messages)" = 'ask: 1 answered, 1 failed, 0 not done, 3 answered before'
    test "$(sed 's/","answer.*//; s/.*"//' out | tr '\n' ' ')" = '1 2 3 5 '
    test "$(wc -l <out.failed.jsonl)" = 1
    sed -i 's/refuse/answer/' prompts
    "$program" --batch prompts --output out --resume
    test "$(sed 's/","answer.*//; s/.*"//' out | tr '\n' ' ')" = '1 2 3 4 5 '
    test ! -s out.failed.jsonl
    cp out before
    "$program" --batch prompts --output out --resume
    cmp out before
]=])
sluice_script_test(ask "does not overwrite answers" [=[
    echo '"one"' >prompts
    "$program" --batch prompts --output out
    cp out before
    status=0
    "$program" --batch prompts --output out >output 2>&1 || status=$?
    test $status = 2
    test "$(cat output)" = "ask: 'out' has something already: add --resume to go on, or remove it"
    cmp out before
]=])
sluice_script_test(ask "reads all prompts before it sends one" [=[
    { seq 50 | sed 's/.*/"prompt &"/'; echo '{"prompt":52}'; } >prompts
    status=0
    "$program" --batch prompts --output out >output 2>&1 || status=$?
    test $status = 2
    test "$(cat output)" = "ask: line 51 of 'prompts' has a prompt that is not a string"
    test ! -e out
]=])
sluice_script_test(ask "cannot write an answer" [=[
    seq 50 | sed 's/.*/"prompt &"/' >prompts
    status=0
    "$program" --batch prompts --output /dev/full --failed failed >output 2>&1 || status=$?
    test $status = 2
    test "$(tail -n 1 output)" = "ask: cannot write '/dev/full'"
    status=0
    echo '"please refuse"' >>prompts
    "$program" --batch prompts --failed /dev/full >output 2>&1 || status=$?
    test $status = 2
    test "$(tail -n 1 output)" = "ask: cannot write '/dev/full'"
    status=0
    "$program" why >/dev/full 2>output || status=$?
    test $status = 1
    tail -n 1 output | grep '^ask: .*cannot write standard output$'
]=])

# Behind 10 answers come 4 that take an hour, and so hold every slot. The signal comes once the first is written.
sluice_script_test(ask "is interrupted, and resumed" [=[
    { seq 10; yes 'a slow one' | head -n 4; seq 100; } | sed 's/.*/"&"/' >prompts
    mkfifo out
    "$program" --batch prompts --grace 0 >out 2>messages &
    exec 3<out
    read -r first <&3
    kill -INT $!
    { echo "$first"; cat <&3; } >answers
    status=0
    wait $! || status=$?
    cat answers messages
    test $status = 1
    answered=$(wc -l <answers)
    test $answered -le 10
    test "$(sed 1d messages)" = "ask: draining, for at most 0 s
ask: $answered answered, 0 failed, $((114 - answered)) not done"

    sed -i 's/a slow one/a quick one/' prompts
    "$program" --batch prompts --output answers --resume --at-once 50 2>messages
    test "$(tail -n 1 messages)" = "ask: $((114 - answered)) answered, 0 failed, 0 not done, $answered answered before"
    seq 114 >ids
    sed 's/","answer.*//; s/.*"//' answers | cmp - ids
]=])
sluice_script_test(ask "ends its grace at a second signal" [=[
    { echo '"1"'; echo '"a slow one"'; seq 3 9 | sed 's/.*/"&"/'; } >prompts
    mkfifo out messages
    "$program" --batch prompts --grace 3600 >out 2>messages &
    exec 4<out 3<messages
    read -r line <&4
    echo "$line" >answers
    kill -TERM $!
    read -r line <&3
    read -r line <&3
    test "$line" = 'ask: draining, for at most 3600 s'
    kill -INT $!
    read -r line <&3
    test "$line" = 'ask: draining, for at most 0 s'
    cat <&4 >>answers
    status=0
    wait $! || status=$?
    test $status = 1
    answered=$(wc -l <answers)
    test "$(cat <&3)" = "ask: $answered answered, 0 failed, $((9 - answered)) not done"
    sed -i 's/slow/quick/' prompts
    "$program" --batch prompts --output answers --resume
    seq 9 >ids
    sed 's/","answer.*//; s/.*"//' answers | cmp - ids
]=])
sluice_script_test(ask "is killed, and resumed" [=[
    seq 200 | sed 's/.*/"&"/' >prompts
    mkfifo out
    "$program" --batch prompts --output /dev/stdout --failed failed >out &
    exec 3<out
    for i in 1 2 3 4 5; do read -r line <&3; echo "$line" >>answers; done
    kill -KILL $!
    cat <&3 >>answers
    printf '{"id":"199","ans' >>answers
    "$program" --batch prompts --output answers --resume --at-once 50
    seq 200 >ids
    sed 's/","answer.*//; s/.*"//' answers | cmp - ids
]=])

sluice_script_test(ask "cannot reach a server" [=[
    export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1 OPENAI_API_KEY=sk-secret
    status=0
    "$program" --model http://127.0.0.1:1/v1 --retries 1 why >answer 2>messages || status=$?
    cat messages
    test $status = 1
    test ! -s answer
    grep '^ask: .*127.0.0.1:1' messages
    test "$(wc -l <messages)" = 1
    printf '"one"\n"two"\n' >prompts
    status=0
    "$program" --model http://127.0.0.1:1/v1 --batch prompts --output out --retries 1 2>>messages || status=$?
    test $status = 1
    test "$(tail -n 1 messages)" = 'ask: 0 answered, 2 failed, 0 not done'
    test "$(grep -c '"status":null,"attempts":2}$' out.failed.jsonl)" = 2
    ! grep secret *
]=])
sluice_script_test(ask "does not send the key in clear text, and never shows it" [=[
    unset http_proxy HTTP_PROXY all_proxy ALL_PROXY
    export OPENAI_API_KEY=sk-secret
    for host in 192.0.2.1 example.com:8080; do
        status=0
        "$program" --model http://$host/v1 why >output 2>&1 || status=$?
        test $status = 2
        test "$(cat output)" = "ask: the key is not sent to '${host%:*}' over http: use https, or no key"
    done
    status=0
    OPENAI_API_KEY='sk secret' "$program" --model https://example.com why >output 2>&1 || status=$?
    test $status = 2
    test "$(cat output)" = 'ask: OPENAI_API_KEY has a blank, or another character that no key has'
    "$program" why >output 2>&1
    ! grep secret output
]=])
sluice_script_test(ask "refuses to go around a proxy" [=[
    unset OPENAI_API_KEY no_proxy NO_PROXY
    export http_proxy=http://user:secret@127.0.0.1:1
    status=0
    "$program" --model http://example.com/v1 why >output 2>&1 || status=$?
    cat output
    test $status = 2
    test "$(wc -l <output)" = 1
    grep '^ask: .*http_proxy' output
    ! grep secret output
    "$program" why
]=])

if(NOT Python3_FOUND)
    return()
endif()
set(escapes [=[
    question=$(printf 'a\033[31m\302\233m\n\tb\303\251 c')
    "$program" "$question" 2>/dev/null | grep -F "$(printf 'a\033[31m\302\233m')"
    "$python" -c 'import pty, sys; pty.spawn(sys.argv[1:])' "$program" "$question" </dev/null >shown
    cat -v shown
    tr -d '\r' <shown >lines
    grep -F 'a\x1b[31m\u009bm' lines
    grep -F "$(printf '\tb\303\251 c')" lines
    test "$(LC_ALL=C tr -cd '\033\233' <lines | wc -c)" = 0
    printf '"a\302\233m"\n' >prompts
    "$python" -c 'import pty, sys; pty.spawn(sys.argv[1:])' "$program" --batch prompts </dev/null >shown
    cat -v shown
    grep -F 'a\u009bm' shown
    test "$(LC_ALL=C tr -cd '\233' <shown | wc -c)" = 0
]=])
# Both kinds of output are on the terminal: what follows the progress replaces it.
set(script [=[
    seq 60 | sed 's/.*/"&"/' >prompts
    echo '"please refuse"' >>prompts
    "$python" -c 'import pty, sys; pty.spawn(sys.argv[1:])' "$program" --batch prompts </dev/null >shown
    cat -v shown
    grep '[0-9]*/61 queries ([0-9]* %), 0 dead letters' shown
    tr '\r' '\n' <shown >lines
    grep -v '/61 queries (\|^ *$\|^ask: no --model' lines >rest
    test "$(grep -c '^{"id":"[0-9]*","answer":' rest)" = 60
    test "$(grep -c '^{"id":"61","prompt":' rest)" = 1
    test "$(tail -n 1 rest)" = 'ask: 60 answered, 1 failed, 0 not done'
    test "$(wc -l <rest)" = 62
    "$python" -c 'import pty, sys; pty.spawn(sys.argv[1:])' \
        "$program" --batch prompts --output answers --failed /dev/stderr </dev/null >shown
    cat -v shown
    test "$(tr '\r' '\n' <shown | grep -c '^{"id":"61","prompt":')" = 1
]=])
sluice_script_test(ask "gives a terminal no orders of a server" "python='${Python3_EXECUTABLE}'
${escapes}")
sluice_script_test(ask "shows its progress on a terminal" "python='${Python3_EXECUTABLE}'
${script}")

# A server that writes down what it is sent, with the key, and answers as the first word of the prompt says.
set(script [=[
    export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1 OPENAI_API_KEY=sk-secret
    mkfifo port
    "$python" -c '
import http.server, json, threading, time
heard = open("heard", "w")
most = open("most", "a")
seen = set()
working = 0
lock = threading.Lock()
three = threading.Barrier(3)
last = threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_POST(self):
        global working
        with lock:
            working += 1
            print(working, file=most, flush=True)
        time.sleep(0.02)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"]
        print(self.path, self.headers["Authorization"], request["model"], text, file=heard, flush=True)
        word = text.split()[0]
        status, answer = 200, {"choices": [{"message": {"content": text.upper()}, "finish_reason": "stop"}]}
        if word == "meet": three.wait(60)
        if word == "late": last.wait(60)
        if word == "last": last.set()
        if word == "closed":
            status, answer = 503, {"error": {"message": "closed until noon"}}
        if word == "throttle" and text not in seen:
            status, answer = 429, {"error": {"message": "slower", "code": "rate_limit_exceeded"}}
        if word == "deny":
            status, answer = 401, {"error": {"message": "wrong key", "code": "invalid_api_key"}}
        seen.add(text)
        with lock: working -= 1
        body = json.dumps(answer).encode()
        self.send_response(status)
        if status == 429: self.send_header("retry-after-ms", "50")
        if status == 503: self.send_header("Retry-After", "180")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
open("port", "w").write(str(server.server_port) + "\n")
server.serve_forever()' &
    trap "kill $!; rm -rf '$folder'" EXIT
    read -r port <port
    model="--model http://127.0.0.1:$port/v1"
]=])
set(throttled [=[
    printf '"one"\n"throttle two"\n"three"\n' >prompts
    "$program" $model --name tiny --retries 0 --batch prompts --at-once 1 >answers 2>messages
    cat messages heard
    test "$(cat answers)" = '{"id":"1","answer":"ONE","finish_reason":"stop","attempts":1,"input_tokens":null,"output_tokens":null}
{"id":"2","answer":"THROTTLE TWO","finish_reason":"stop","attempts":2,"input_tokens":null,"output_tokens":null}
{"id":"3","answer":"THREE","finish_reason":"stop","attempts":1,"input_tokens":null,"output_tokens":null}'
    test "$(sort heard)" = '/v1/chat/completions Bearer sk-secret tiny one
/v1/chat/completions Bearer sk-secret tiny three
/v1/chat/completions Bearer sk-secret tiny throttle two
/v1/chat/completions Bearer sk-secret tiny throttle two'
    ! grep secret answers messages
]=])
set(at_once [=[
    seq 40 | sed 's/.*/"&"/' >prompts
    seq 3 | sed 's/.*/"meet &"/' >>prompts  # none of these is answered before all are there
    "$program" $model --batch prompts --at-once 3 >answers
    test "$(wc -l <answers)" = 43
    test "$(wc -l <most)" = 43
    test "$(sort -n most | tail -n 1)" = 3
]=])
sluice_script_test(ask "makes as many calls at once as it is told" "python='${Python3_EXECUTABLE}'
${script}${at_once}")
# The first is answered when the last has been asked: behind two that were answered.
set(late [=[
    printf '"late one"\n"two"\n"three"\n"four"\n"last five"\n' >prompts
    "$program" $model --batch prompts --at-once 3 >answers
    test "$(sed 's/","finish.*//; s/.*"//' answers | tr '\n' ,)" = 'LATE ONE,TWO,THREE,FOUR,LAST FIVE,'
]=])
sluice_script_test(ask "puts late answers in order" "python='${Python3_EXECUTABLE}'
${script}${late}")
set(closed [=[
    printf '"one"\n"closed"\n' >prompts
    status=0
    "$program" $model --batch prompts --output out --at-once 1 2>messages || status=$?
    cat messages
    test $status = 1
    grep '^ask: the server asks to wait for 180 s, so draining: .*closed until noon' messages
    test "$(tail -n 1 messages)" = 'ask: 1 answered, 1 failed, 0 not done'
]=])
sluice_script_test(ask "stops when it would have to wait for too long" "python='${Python3_EXECUTABLE}'
${script}${closed}")
sluice_script_test(ask "waits when it is throttled" "python='${Python3_EXECUTABLE}'
${script}${throttled}")
# The prompts that were on their way when the first was denied are denied, too.
set(denied [=[
    { echo '"one"'; seq 40 | sed 's/.*/"deny &"/'; } >prompts
    status=0
    "$program" $model --batch prompts --output out --at-once 2 2>messages || status=$?
    cat messages heard
    test $status = 1
    grep '^ask: no request will work, so draining: .*wrong key.*, for at most 10 s$' messages
    test "$(grep -c '^ask: no request' messages)" = 1
    failed=$(wc -l <out.failed.jsonl)
    test $failed -le 6
    test "$(tail -n 1 messages)" = "ask: 1 answered, $failed failed, $((40 - failed)) not done"
    test "$(grep -c deny heard)" = $failed
    ! grep secret out out.failed.jsonl messages
]=])
sluice_script_test(ask "stops when its key is denied" "python='${Python3_EXECUTABLE}'
${script}${denied}")
