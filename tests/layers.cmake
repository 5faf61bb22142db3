# SPDX-License-Identifier: BSL-1.0
# Run by cmake -P: fails with a line for each include that points upwards.
#
#                   metrics
#                     |
#     testing      pipeline
#        |            |
#        |          stage
#        |            |
#        |     sluice/*.hpp      query, result, stage_error, ... : the vocabulary
#        |            |
#        +---------- sync        knows no query
#
# A folder includes itself and those below it. A header in detail/ includes a public header of its own folder only if
# that header is not built on detail/ itself. Examples include no header of detail/.
cmake_minimum_required(VERSION 3.25)
set(include ${CMAKE_CURRENT_LIST_DIR}/../include)
set(below_sync sync)
set(below_vocabulary vocabulary sync)
set(below_stage stage vocabulary sync)
set(below_pipeline pipeline stage vocabulary sync)
set(below_metrics metrics pipeline stage vocabulary sync)
set(below_testing testing sync)

# Sets `result` to the folder of a header that is named as in sluice/sync/barrier.hpp.
function(folder_of header result)
    if(header MATCHES "^sluice/([^/]+)/")
        set(${result} ${CMAKE_MATCH_1} PARENT_SCOPE)
    else()
        set(${result} vocabulary PARENT_SCOPE)
    endif()
endfunction()

# Sets `result` to the headers of sluice that a file includes.
function(includes_of file result)
    file(STRINGS ${file} lines REGEX "^#include <sluice/[^>]*[.]hpp>")
    list(TRANSFORM lines REPLACE "^#include <([^>]+)>.*" "\\1")
    set(${result} ${lines} PARENT_SCOPE)
endfunction()

set(mistakes 0)
function(mistake words)
    message("${words}")
    math(EXPR mistakes "${mistakes} + 1")
    set(mistakes ${mistakes} PARENT_SCOPE)
endfunction()

file(GLOB_RECURSE headers RELATIVE ${include} ${include}/*.hpp)
list(REMOVE_ITEM headers sluice/sluice.hpp)
foreach(header IN LISTS headers)
    folder_of(${header} folder)
    includes_of(${include}/${header} included_headers)
    foreach(included IN LISTS included_headers)
        folder_of(${included} included_folder)
        if(NOT included_folder IN_LIST below_${folder})
            mistake("${header} includes ${included}, which is above it")
        elseif(header MATCHES "/detail/" AND NOT included MATCHES "/detail/" AND included_folder STREQUAL folder)
            includes_of(${include}/${included} its_headers)
            list(FILTER its_headers INCLUDE REGEX "^sluice/${folder}/detail/")
            list(REMOVE_ITEM its_headers sluice/sync/detail/requirements.hpp)
            if(its_headers)
                mistake("${header} includes ${included}, which is built on detail/")
            endif()
        endif()
    endforeach()
endforeach()

file(GLOB_RECURSE examples ${CMAKE_CURRENT_LIST_DIR}/../examples/*.cpp ${CMAKE_CURRENT_LIST_DIR}/../examples/*.hpp)
foreach(example IN LISTS examples)
    includes_of(${example} included_headers)
    list(FILTER included_headers INCLUDE REGEX "/detail/")
    if(included_headers)
        mistake("${example} includes ${included_headers}")
    endif()
endforeach()

list(LENGTH headers count)
if(mistakes OR count LESS 30)
    message(FATAL_ERROR "${mistakes} mistakes in ${count} headers")
endif()
