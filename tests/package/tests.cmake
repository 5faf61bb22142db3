# SPDX-License-Identifier: BSL-1.0
# The ways to use sluice in another project, the one in this folder, and the messages if Boost or Catch2 is missing.
set(consumer ${CMAKE_CURRENT_LIST_DIR})
set(work ${CMAKE_CURRENT_BINARY_DIR}/package)
set(prefix ${work}/moved)
file(MAKE_DIRECTORY ${work})

# Tests that need the installed files use a prefix that was moved after the installation: its old place is empty.
add_test(NAME "package: every header is installed"
         COMMAND sh -ec "
             rm -rf '${work}/installed' '${prefix}'
             '${CMAKE_COMMAND}' --install '${PROJECT_BINARY_DIR}' --prefix '${work}/installed'
             mv '${work}/installed' '${prefix}'
             diff -r '${PROJECT_SOURCE_DIR}/include' '${prefix}/include'")
set_tests_properties("package: every header is installed" PROPERTIES FIXTURES_SETUP installed)

set(warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Werror)
set(toolchain -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_CXX_FLAGS=${CMAKE_CXX_FLAGS}
              -DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE} -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM})
if(CMAKE_CXX_STANDARD)  # otherwise sluice must set it
    list(APPEND toolchain -DCMAKE_CXX_STANDARD=${CMAKE_CXX_STANDARD})
endif()

# sluice_package_test(name way option...): builds and runs the consumer, which uses sluice in this way
function(sluice_package_test name way)
    add_test(NAME "package: ${name}"
             COMMAND ${CMAKE_CTEST_COMMAND} --build-and-test ${consumer} ${work}/${way}
                     --build-generator ${CMAKE_GENERATOR} --build-project consumer
                     --build-options ${toolchain} -DWAY=${way} "-DWARNINGS=${warnings}" -DBoost_DIR=${Boost_DIR} ${ARGN}
                     --test-command consumer)
    set_tests_properties("package: ${name}" PROPERTIES FAIL_REGULAR_EXPRESSION "warning:;CMake Warning;CMake Deprecation")
endfunction()

sluice_package_test("find_package after an install" find_package -DCMAKE_PREFIX_PATH=${prefix})
sluice_package_test("add_subdirectory" add_subdirectory -DSOURCE=${PROJECT_SOURCE_DIR})
sluice_package_test("FetchContent" FetchContent -DFETCHCONTENT_SOURCE_DIR_SLUICE=${PROJECT_SOURCE_DIR})
set_tests_properties("package: find_package after an install" PROPERTIES FIXTURES_REQUIRED installed)

# sluice_compiler_test(name program flags): builds the consumer by one compiler call and runs it; the shell expands the
# flags
get_target_property(boost Boost::headers INTERFACE_INCLUDE_DIRECTORIES)
list(REMOVE_ITEM boost ${CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES})  # -isystem would change their order
list(TRANSFORM boost REPLACE "(.+)" "-isystem '\\1'")
list(JOIN boost " " boost)
list(JOIN warnings " " warnings)
function(sluice_compiler_test name program flags)
    add_test(NAME "package: ${name}"
             COMMAND sh -ec "
                 '${CMAKE_CXX_COMPILER}' ${CMAKE_CXX_FLAGS} -std=c++${sluice_standard} ${warnings} ${boost} \\
                     '${consumer}/main.cpp' '${consumer}/phases.cpp' ${flags} -o '${work}/${program}'
                 '${work}/${program}'")
    set_tests_properties("package: ${name}" PROPERTIES FAIL_REGULAR_EXPRESSION warning:)
endfunction()

set(include "-I '${PROJECT_SOURCE_DIR}/include' -pthread")
sluice_compiler_test("a plain compiler call" plain "${include}")
set(optimised -O3 -flto -DBOOST_ASIO_NO_DEPRECATED -DBOOST_ASIO_DISABLE_BOOST_COROUTINE)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    # g++ 12 takes the frames of a coroutine in a header for different types. With several partitions, g++ warns if
    # there is no make to compile them in parallel.
    list(APPEND optimised -Wno-odr -flto-partition=one)
endif()
list(JOIN optimised " " optimised)
sluice_compiler_test("-O3 -flto, without the deprecated parts of Asio" optimised "${include} ${optimised}")
find_program(SLUICE_PKG_CONFIG pkg-config)
if(SLUICE_PKG_CONFIG)
    sluice_compiler_test("a compiler call with sluice.pc" pkg-config
                         "$('${SLUICE_PKG_CONFIG}' --cflags --libs 'sluice >= 0.2')")
    set_tests_properties("package: a compiler call with sluice.pc" PROPERTIES
                         FIXTURES_REQUIRED installed ENVIRONMENT PKG_CONFIG_PATH=${prefix}/share/pkgconfig)
endif()

# On a machine that has only the packages below ${work}: without Boost or Catch2, or with one that is too old.
set(bare ${toolchain} -DCMAKE_FIND_ROOT_PATH=${work} -DCMAKE_FIND_ROOT_PATH_MODE_PACKAGE=ONLY)
include(CMakePackageConfigHelpers)
function(sluice_pretend package version config)
    set(folder ${work}/${version}/share/cmake/${package})
    file(WRITE ${folder}/${package}Config.cmake "${config}")
    write_basic_package_version_file(${folder}/${package}ConfigVersion.cmake
                                     VERSION ${version} COMPATIBILITY AnyNewerVersion)
endfunction()
sluice_pretend(Boost 1.82.0 "")
sluice_pretend(Boost 1.83.0 "add_library(Boost::headers INTERFACE IMPORTED)")
sluice_pretend(Catch2 3.3.0 "")

# sluice_missing_test(program source needs found prefix...): the message about what is missing
function(sluice_missing_test program source needs found)
    set(name "package: ${program} says what it needs (${needs}, found: ${found})")
    list(TRANSFORM ARGN PREPEND ${work}/)
    string(MAKE_C_IDENTIFIER "${program} ${needs} ${found}" folder)
    add_test(NAME ${name}
             COMMAND ${CMAKE_COMMAND} --fresh -G ${CMAKE_GENERATOR} -S ${source} -B ${work}/${folder}
                     ${bare} -DWAY=find_package "-DCMAKE_PREFIX_PATH=${prefix};${ARGN}")
    string(REPLACE " " "[ \n]+" words "needs? ${needs} or newer[.] CMake found: ${found}[.] ")
    set_tests_properties(${name} PROPERTIES
        FIXTURES_REQUIRED installed
        PASS_REGULAR_EXPRESSION "${words}"
        FAIL_REGULAR_EXPRESSION "CMake Error.*CMake Error;CMake Warning;Configuring done")
endfunction()
set(boost "the headers of Boost 1.83")
foreach(found none 1.82.0)
    sluice_missing_test(build ${PROJECT_SOURCE_DIR} "${boost}" ${found} ${found})
    sluice_missing_test(find_package ${consumer} "${boost}" ${found} ${found})
endforeach()
foreach(found none 3.3.0)
    sluice_missing_test(build ${PROJECT_SOURCE_DIR} "Catch2 3.4" ${found} 1.83.0 ${found})
endforeach()
