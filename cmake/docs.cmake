# SPDX-License-Identifier: BSL-1.0
# cmake --build ... --target docs: the reference, taken from the headers; ${PROJECT_BINARY_DIR}/docs/html/index.html
find_package(Doxygen QUIET)
if(DOXYGEN_FOUND)
    set(DOXYGEN_OUTPUT_DIRECTORY docs)
    set(DOXYGEN_QUIET YES)
    set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)
    set(DOXYGEN_EXTRACT_ALL YES)  # what has no comment is said by its declaration
    set(DOXYGEN_JAVADOC_AUTOBRIEF YES)
    set(DOXYGEN_EXCLUDE_PATTERNS */detail/*)
    set(DOXYGEN_EXCLUDE_SYMBOLS sluice::detail*)
    set(DOXYGEN_STRIP_FROM_PATH include)
    set(DOXYGEN_STRIP_FROM_INC_PATH include)
    # doxygen takes the specialisation that StageResult<T> is derived from for StageResult<T> itself.
    set(DOXYGEN_INPUT_FILTER "sed 's/struct StageResult : StageResult<>/struct StageResult/'")
    doxygen_add_docs(docs include/sluice)
endif()
