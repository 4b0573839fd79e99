"""Published studies as short scripts on the public names.

demo            `pylandscape demo`
theorems        `pylandscape theory`: what theorems say beside what is found
table1, table1_cases, table1_report   `pylandscape reproduce table1`
"""
