# SPDX-License-Identifier: BSL-1.0
# cmake --workflow --preset docs: the reference, taken from the headers, with the README as its first page
find_package(Doxygen QUIET)
if(DOXYGEN_FOUND)
    set(DOXYGEN_OUTPUT_DIRECTORY docs)
    set(DOXYGEN_QUIET YES)
    set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)
    set(DOXYGEN_EXTRACT_ALL YES)  # a declaration that needs no words has no comment
    set(DOXYGEN_JAVADOC_AUTOBRIEF YES)
    set(DOXYGEN_EXCLUDE_PATTERNS */detail/*)
    set(DOXYGEN_EXCLUDE_SYMBOLS sluice::detail*)
    set(DOXYGEN_STRIP_FROM_PATH include)
    set(DOXYGEN_STRIP_FROM_INC_PATH include)
    set(DOXYGEN_USE_MDFILE_AS_MAINPAGE README.md)
    # doxygen takes the specialisation that StageResult<T> is derived from for StageResult<T> itself.
    set(DOXYGEN_INPUT_FILTER "sed 's/struct StageResult : StageResult<>/struct StageResult/'")
    # It takes a link to another document for a reference to one of its own pages, unless the link has an anchor.
    set(DOXYGEN_FILTER_PATTERNS "*.md=sed 's/[.]md)/.md#top)/g'")
    doxygen_add_docs(docs include/sluice README.md)
    # The files that README.md links to and shows.
    set(html ${PROJECT_BINARY_DIR}/docs/html)
    add_custom_command(TARGET docs POST_BUILD
        COMMAND ${CMAKE_COMMAND} -E copy_directory examples ${html}/examples
        COMMAND ${CMAKE_COMMAND} -E copy_directory include ${html}/include
        COMMAND ${CMAKE_COMMAND} -E copy_directory tests ${html}/tests
        COMMAND ${CMAKE_COMMAND} -E copy_directory .github ${html}/.github
        COMMAND ${CMAKE_COMMAND} -E copy LICENSE ${html}
        WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} VERBATIM)
else()
    add_custom_target(docs COMMAND ${CMAKE_COMMAND} -E echo "The reference needs doxygen; cmake/bootstrap.sh --all has it"
                      COMMAND ${CMAKE_COMMAND} -E false VERBATIM)
endif()
