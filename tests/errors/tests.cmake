# SPDX-License-Identifier: BSL-1.0
# Programs with a mistake, and what the compiler must say about it in its first ten lines. Each compiles without MISTAKE.
set(errors ${CMAKE_CURRENT_LIST_DIR})
set(include "-I '$<JOIN:$<TARGET_PROPERTY:sluice,INTERFACE_INCLUDE_DIRECTORIES>,' -I '>'")
set(compile "'${CMAKE_CXX_COMPILER}' ${CMAKE_CXX_FLAGS} -std=c++${sluice_standard} -fsyntax-only -pthread ${include}")

set(programs "")
function(sluice_error_test program words)
    string(REPLACE _ " " name ${program})
    add_test(NAME "errors: ${name}" COMMAND sh -c "${compile} -DMISTAKE '${errors}/${program}.cpp' 2>&1 | head -n 10")
    set_tests_properties("errors: ${name}" PROPERTIES PASS_REGULAR_EXPRESSION "error: .*${words}")
    set(programs "${programs} -include '${errors}/${program}.cpp'" PARENT_SCOPE)
endfunction()

set(value "must return an asio::awaitable of a value: not void, no reference, nothing that may throw when it is moved")
sluice_error_test(model_changes_the_text "sluice::InferencePipeline: extract cannot be called with a const std::string&")
sluice_error_test(model_changes_the_intent "sluice::InferencePipeline: generate cannot be called with a const Intent&")
sluice_error_test(model_is_no_coroutine "sluice::ModelFunction: classify[(]const std::string&[)] ${value}")
sluice_error_test(model_returns_a_reference "sluice::ModelFunction: classify[(]const std::string&[)] ${value}")
sluice_error_test(model_returns_a_type_with_a_throwing_move "sluice::ModelFunction: generate[(]intent, entities, .*${value}")
sluice_error_test(generate_takes_other_types "sluice::InferencePipeline: generate cannot be called with a const Intent&")
sluice_error_test(executors_differ "the awaitables of classify, extract and generate must have the same executor type")
sluice_error_test(sink_without_put "sluice::DeadLetterSink: the sink must have put[(]")
sluice_error_test(sink_takes_other_types "sluice::DeadLetterSink: the sink must have put[(]")
sluice_error_test(timer_without_clock "sluice::Timer: the timer of timed_by[(][)] must have the interface of asio::steady_timer and a clock")
sluice_error_test(range_of_another_type "sluice::QueryRange: process_batch[(][)] needs a range or an asynchronous source of")
sluice_error_test(stage_takes_other_arguments "sluice::Stage: the model function cannot be called with the arguments of run[(][)]")
set_tests_properties("errors: stage takes other arguments" PROPERTIES FAIL_REGULAR_EXPRESSION "Pooled")
sluice_error_test(stage_model_returns_nothing "sluice::ModelFunction: the model function of a Stage ${value}")
sluice_error_test(body_without_group "sluice::AwaitableFunction: the body of with_task_group[(][)]")
sluice_error_test(child_is_no_coroutine "sluice::AwaitableFunction: spawn[(][)] needs an asio::awaitable")
sluice_error_test(timeout_of_an_awaitable "sluice::AwaitableFunction: with_timeout[(][)] needs a function")
sluice_error_test(run_on_with_arguments "sluice::run_on[(][)] needs a function that can be called without arguments")
sluice_error_test(run_on_returns_a_reference "sluice::run_on[(][)]: the function must return a value or nothing: no reference")
sluice_error_test(run_on_of_a_bound_coroutine "sluice::run_on[(][)]: the function's asio::awaitable must be able to run on a")
add_test(NAME "errors: no program has one without its mistake" COMMAND sh -c "${compile} ${programs} -x c++ /dev/null")

# Every header but version.hpp, which needs nothing, says what it needs before anything else.
foreach(needs "C[+][+]20;-std=c++17" "exceptions;-std=c++${sluice_standard} -fno-exceptions")
    list(GET needs 0 words)
    list(GET needs 1 flags)
    string(REGEX REPLACE "[][]" "" name ${words})
    add_test(NAME "errors: each header says that it needs ${name}"
             COMMAND sh -c "for header in $(find sluice -name '*.hpp' ! -name version.hpp); do \
                                '${CMAKE_CXX_COMPILER}' ${flags} -fsyntax-only -Wfatal-errors -I . -x c++ $header 2>&1 | grep error: | head -n 1 \
                                    | grep -q 'sluice needs ${words}' || echo $header; \
                            done | { ! grep . ; }"
             WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}/include)
endforeach()
